"""Where it runs: the axes of a mesh and the table that maps logical axes onto them. Knows nothing of Qwen3."""

from sharding.rules import CONTEXT as CONTEXT
from sharding.rules import DATA as DATA
from sharding.rules import DEFAULT_RULES as DEFAULT_RULES
from sharding.rules import EXPERT as EXPERT
from sharding.rules import FSDP as FSDP
from sharding.rules import MESH_AXES as MESH_AXES
from sharding.rules import TENSOR as TENSOR
from sharding.rules import Rules as Rules
from sharding.rules import logical_to_spec as logical_to_spec
