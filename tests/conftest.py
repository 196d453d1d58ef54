import importlib.util
import os

import torch

# Tests use small tensors, which one thread serves best; more would only get in each other's way.
torch.set_num_threads(1)

# Without a GPU the CUDA kernels run in triton's interpreter, which must be chosen before anything imports them.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
