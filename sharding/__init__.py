"""Where it runs: the axes of a mesh and the table that maps logical axes onto them. Knows nothing of Qwen3."""

from qwen3_jax.sharding.collectives import ragged_all_to_all as ragged_all_to_all
from qwen3_jax.sharding.constrain import constrain as constrain
from qwen3_jax.sharding.constrain import current_mesh as current_mesh
from qwen3_jax.sharding.constrain import dividing as dividing
from qwen3_jax.sharding.constrain import gather_weight as gather_weight
from qwen3_jax.sharding.constrain import mesh_of as mesh_of
from qwen3_jax.sharding.constrain import mesh_size as mesh_size
from qwen3_jax.sharding.constrain import named_sharding as named_sharding
from qwen3_jax.sharding.constrain import put as put
from qwen3_jax.sharding.constrain import replicate as replicate
from qwen3_jax.sharding.constrain import row_major as row_major
from qwen3_jax.sharding.constrain import spec_of as spec_of
from qwen3_jax.sharding.constrain import under_mesh as under_mesh
from qwen3_jax.sharding.mesh import MeshConfig as MeshConfig
from qwen3_jax.sharding.mesh import as_auto as as_auto
from qwen3_jax.sharding.mesh import make_mesh as make_mesh
from qwen3_jax.sharding.mesh import mesh_config as mesh_config
from qwen3_jax.sharding.mesh import parse_mesh as parse_mesh
from qwen3_jax.sharding.platforms import target_platform as target_platform
from qwen3_jax.sharding.rules import DEFAULT_RULES as DEFAULT_RULES
from qwen3_jax.sharding.rules import MESH_AXES as MESH_AXES
from qwen3_jax.sharding.rules import Rules as Rules
from qwen3_jax.sharding.rules import axes_of as axes_of
from qwen3_jax.sharding.rules import logical_to_spec as logical_to_spec
