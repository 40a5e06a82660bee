"""Compile a task policy from a sentence and a picture, forget the large network, and act.

python examples/01_compile_and_act.py "open the drawer"
"""

import sys

from hypervla import load
from hypervla.simulation.metaworld import MetaworldEnvironment

instruction = sys.argv[1] if len(sys.argv) > 1 else "open the drawer"
robot = MetaworldEnvironment("drawer-open-v3")
robot.reset(seed=1_000_000)

model = load("metaworld_small")
policy = model.compile(instruction, robot.observe().images)  # large network, once
del model  # the robot no longer needs it

steps, done = 0, False
while not done and steps < 400:
    outcome = robot.execute(policy.act(robot.observe()))  # small network, every step
    steps, done = steps + outcome.steps, outcome.success
print(f"'{instruction}': {'success' if done else 'no success'} after {steps} steps")
robot.close()
