"""`xlm-plan`: what a run will take, before anything is paid for.

settings.py what is asked, and every mistake in it; flops.py, memory.py counted from the model; estimate.py puts them
together with ../network_model.py and ../probe.py; page.py shows the result.
"""
