"""The one name that lerobot takes from here."""


class Transform: ...
