"""Where it runs: the axes of a mesh and the table that maps logical axes onto them. Knows nothing of Qwen3."""

from sharding.collectives import ragged_all_to_all as ragged_all_to_all
from sharding.constrain import constrain as constrain
from sharding.constrain import current_mesh as current_mesh
from sharding.constrain import gather_weight as gather_weight
from sharding.constrain import mesh_of as mesh_of
from sharding.constrain import mesh_size as mesh_size
from sharding.constrain import named_sharding as named_sharding
from sharding.constrain import replicate as replicate
from sharding.constrain import row_major as row_major
from sharding.constrain import under_mesh as under_mesh
from sharding.mesh import MeshConfig as MeshConfig
from sharding.mesh import as_auto as as_auto
from sharding.mesh import make_mesh as make_mesh
from sharding.mesh import mesh_config as mesh_config
from sharding.mesh import parse_mesh as parse_mesh
from sharding.platforms import target_platform as target_platform
from sharding.rules import CONTEXT as CONTEXT
from sharding.rules import DATA as DATA
from sharding.rules import DEFAULT_RULES as DEFAULT_RULES
from sharding.rules import EXPERT as EXPERT
from sharding.rules import FSDP as FSDP
from sharding.rules import MESH_AXES as MESH_AXES
from sharding.rules import TENSOR as TENSOR
from sharding.rules import Rules as Rules
from sharding.rules import axes_of as axes_of
from sharding.rules import logical_to_spec as logical_to_spec
