"""What a run says while it goes and leaves when it is done.

`plots` is imported where it is used: matplotlib takes half a second to load.
"""

from gkd_jax.reporting.files import write_json
from gkd_jax.reporting.progress import Progress
from gkd_jax.reporting.records import JsonlWriter, read_records
from gkd_jax.reporting.table import Row, closing_table
from gkd_jax.reporting.tensorboard import TensorBoardWriter

__all__ = ["JsonlWriter", "Progress", "Row", "TensorBoardWriter", "closing_table", "read_records", "write_json"]
