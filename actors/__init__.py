"""Everything that knows Ray, vLLM or DeepSpeed."""
