"""Resilience testing: floods and injected faults on a private queue, and the proof that its promises held.

synthetic.py   the records: every one known by its number
schedule.py    when each is due, open loop
producer.py    the producing process, around the service's own publisher
rig.py         the private set-up: server, agents, producers, proxy, clock, disks
fault.py       what a fault is; faults/: ADD A FAULT = ADD ONE CLASS
history.py     what the server's own log of effects, and the producers, say happened
checker.py     histories → verdicts, a pure function
reporting.py   figures and the table for people
"""
