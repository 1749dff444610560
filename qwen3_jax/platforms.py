"""Which platform the program being traced is for, see `sharding.platforms`."""

from sharding.platforms import target_platform as target_platform
