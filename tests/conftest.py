import importlib.util
import os

# oneDNN's AMX kernels give wrong results for strided bfloat16 convolutions of 4 to 16 channels (seen with torch 2.13),
# which only tiny models have; without them tests also round alike on more processors. Read when torch is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")

import torch

# Tests use small tensors, which one thread serves best; more would only get in each other's way.
torch.set_num_threads(1)

# Without a GPU the CUDA kernels run in triton's interpreter, which must be chosen before anything imports them.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
