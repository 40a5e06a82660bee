"""Four robots, four tasks, one call: stacked task policies share one backbone.

python examples/02_one_call_for_many_robots.py
"""

from hypervla import load
from hypervla.runtime.task_policy import stack
from hypervla.simulation.metaworld import MetaworldEnvironment

tasks = ("drawer-close-v3", "window-open-v3", "button-press-topdown-v3", "door-open-v3")
robots = [MetaworldEnvironment(task) for task in tasks]
for robot in robots:
    robot.reset(seed=1_000_001)

model = load("metaworld_small")
fleet = stack([model.compile(robot.instructions[0], robot.observe().images) for robot in robots])

done = [False] * len(robots)
for _ in range(100):
    chunks = fleet.act([robot.observe() for robot in robots])
    for i, (robot, chunk) in enumerate(zip(robots, chunks, strict=True)):
        done[i] = done[i] or robot.execute(chunk).success
    if all(done):
        break
for task, succeeded in zip(tasks, done, strict=True):
    print(f"{task:<26} {'success' if succeeded else 'no success'}")
for robot in robots:
    robot.close()
