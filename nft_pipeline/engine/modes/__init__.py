"""One module per way to spend a step's forwards: `before(work, call)` and `after(work, call, output)`.

The modes a person can choose are rows of `nft_pipeline.modes.MODES`. Two more ways are the engine's own: `off`, where a
step is not guided, and `on`, where v_lora is known to be the answer.
"""
