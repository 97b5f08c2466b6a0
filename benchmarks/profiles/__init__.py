"""What training costs: operations, calls, time, memory and energy of a step or an epoch.

python -m benchmarks.profiles.step_cost     # FLOPs and saved bytes, counted
python -m benchmarks.profiles.step_profile  # time of a step by operation
"""
