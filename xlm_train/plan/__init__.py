"""What a run will take, before anything is paid for (`xlm-plan`).

settings.py is what is asked, and every mistake in it; memory.py and ../model/flops.py count from the model; estimate.py
puts them together with network_model.py and probe.py; page.py shows the result.
"""
