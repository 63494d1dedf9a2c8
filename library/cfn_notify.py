#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Tell the people and programs that an inventory names."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_notify
short_description: Tell the people and programs that an inventory names
description:
  - Calls every hook at once, on the controller. A hook that fails or hangs is said in C(unsent), with a
    warning; it never fails the task, and never holds it up for longer than C(timeout_s).
  - Secrets are read from files, or come from a vault; they are in no log and in no list of processes.
options:
  event:
    description: What happened, in one word, such as C(incident) or C(rolled_back).
    type: str
    required: true
  subject:
    description: What happened, in one line.
    type: str
    required: true
  text:
    description: What happened, in as many lines as it needs.
    type: str
    required: true
  data:
    description: The same for programs.
    type: dict
    default: {}
  timeout_s:
    description: How long one hook may take, unless it says so itself.
    type: float
    default: 10
  hooks:
    description: Whom to tell; docs/reference/incident.md explains the fields of each kind.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description: How.
        type: str
        choices: [webhook, mail, command]
        required: true
      name:
        description: What the hook is called in messages.
        type: str
      events:
        description: The events that it is for; empty for all.
        type: list
        elements: str
        default: []
      timeout_s:
        description: How long this hook may take.
        type: float
      url:
        description: Of a webhook; may hold a secret, so only its host is ever shown.
        type: str
      token_file:
        description: File on the controller with the webhook's bearer token.
        type: path
      token:
        description: The token itself, from a vault.
        type: str
      to:
        description: Addresses of a mail.
        type: list
        elements: str
      sender:
        description: Whom a mail comes from.
        type: str
        default: cfn-rollout@localhost
      smtp:
        description: C(HOST:PORT) of the mail server.
        type: str
        default: localhost:25
      tls:
        description: Whether the mail server is to be spoken to in TLS (STARTTLS).
        type: bool
        default: false
      user:
        description: Name to log in with at the mail server.
        type: str
      password_file:
        description: File on the controller with its password.
        type: path
      argv:
        description: A command; it gets the notification as JSON on its standard input.
        type: list
        elements: str
attributes:
  check_mode:
    support: full
    details: Tells nobody.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Tell on-call
  cfn_notify:
    event: incident
    subject: "P1 in production: V2 slow"
    text: V2 needs 40 s
    hooks:
      - {kind: webhook, url: "https://hooks.example.org/cfn", token_file: /etc/cfn-rollout/hook-token}
  delegate_to: localhost
"""

RETURN = r"""
sent:
  description: The hooks that took it.
  returned: always
  type: list
  elements: str
unsent:
  description: The hooks that did not, and why.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.notify_hooks import deliver, problems, title


def main() -> None:
    """Call every hook."""
    hook = {
        "kind": {"type": "str", "choices": ["webhook", "mail", "command"], "required": True},
        "name": {"type": "str"},
        "events": {"type": "list", "elements": "str", "default": []},
        "timeout_s": {"type": "float"},
        "url": {"type": "str", "no_log": True},
        "token_file": {"type": "path", "no_log": False},
        "token": {"type": "str", "no_log": True},
        "to": {"type": "list", "elements": "str"},
        "sender": {"type": "str", "default": "cfn-rollout@localhost"},
        "smtp": {"type": "str", "default": "localhost:25"},
        "tls": {"type": "bool", "default": False},
        "user": {"type": "str"},
        "password_file": {"type": "path", "no_log": False},
        "argv": {"type": "list", "elements": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "event": {"type": "str", "required": True},
            "subject": {"type": "str", "required": True},
            "text": {"type": "str", "required": True},
            "data": {"type": "dict", "default": {}},
            "timeout_s": {"type": "float", "default": 10.0},
            "hooks": {"type": "list", "elements": "dict", "options": hook, "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    hooks = [each for each in given["hooks"] if not each["events"] or given["event"] in each["events"]]
    unfit = [f"{title(each)}: {problem}" for each in hooks for problem in problems(each)]
    if module.check_mode:
        module.exit_json(changed=False, sent=[], unsent=unfit)
    notice = {name: given[name] for name in ("event", "subject", "text", "data")}
    sent, unsent = deliver([each for each in hooks if not problems(each)], notice, given["timeout_s"])
    for each in unfit + unsent:
        module.warn(f"not told: {each}")
    module.exit_json(changed=False, sent=sent, unsent=unfit + unsent)


if __name__ == "__main__":
    main()
