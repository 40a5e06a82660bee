"""Stands in for torchvision, whose wheels do not load beside PyTorch's CPU build: what lerobot touches at import."""

from torchvision import transforms as transforms
