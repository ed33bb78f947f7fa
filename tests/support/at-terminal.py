"""Runs a command on a terminal of its own, types an answer at each question, and
closes the terminal when the command has ended.

usage: at-terminal.py [--once] QUESTION ANSWER COMMAND...
With --once the first question alone is answered. Prints what was on the terminal and how often it was asked; exits as the command did.
"""

import os
import pty
import sys

arguments = sys.argv[1:]
once = arguments[0] == "--once"
question, answer, *command = arguments[once:]
question, answer = question.encode(), answer.encode()
child, terminal = pty.fork()
if child == 0:
    for name in ("DISPLAY", "SSH_AUTH_SOCK", "SSH_ASKPASS"):
        os.environ.pop(name, None)
    os.execvp(command[0], command)
seen, asked = b"", 0
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:  # The last process on the terminal has closed it.
        break
    if not data:
        break
    seen += data
    while seen.count(question) > asked and not (once and asked):
        asked += 1
        os.write(terminal, answer + b"\n")
_, status = os.waitpid(child, 0)
os.close(terminal)
print(seen.decode(errors="replace"), f"asked {asked} times", sep="\n")
sys.exit(os.waitstatus_to_exitcode(status))
