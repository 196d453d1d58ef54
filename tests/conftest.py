import torch

# Tests use small tensors, which one thread serves best; more would only get in each other's way.
torch.set_num_threads(1)
