"""What workers of several ranks import besides: a second's work that each of them would do before its first step."""

import torch._dynamo  # FSDP asks it for nothing but to leave its own functions alone
import torch.distributed.checkpoint.state_dict  # with the first gathered state
import torch.distributed.fsdp
import torch.distributed.tensor

__all__ = ["torch"]
