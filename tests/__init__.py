"""The tests: a package by name, since another one of that name lies among the packages that lerobot needs."""
