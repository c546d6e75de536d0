"""`lmkv lookup`: who holds a prompt."""

from __future__ import annotations

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    JOB_DEADLINE,
    ControllerOption,
    OutputOption,
    ask,
    check_output,
    print_json,
)
from lmkv.cli.prompts import (
    LikeOption,
    LoraOption,
    MessagesOption,
    ModelOption,
    SaltOption,
    TextArgument,
    TokensOption,
    check_size,
    check_texts,
    one_form,
    read_messages,
    read_text,
    read_tokens,
)


def lookup(
    text: TextArgument = "",
    tokens: TokensOption = "",
    chat: MessagesOption = "",
    controller: ControllerOption = DEFAULT_CONTROLLER,
    like: LikeOption = "",
    model: ModelOption = "",
    salt: SaltOption = "",
    lora: LoraOption = "",
    output: OutputOption = "table",
) -> None:
    """Who holds a prompt, chunk by chunk. Text and messages are put to an instance."""
    from lmkv.core.messages import Lookup, LookupInfo

    check_output(output)
    named = one_form({"TEXT": text, "--tokens": tokens, "--messages": chat})
    check_texts(text=text, like=like, model=model, salt=salt, lora=lora)
    message = Lookup(
        1, read_tokens(tokens), read_text(text), read_messages(chat), salt, lora, like, model
    )
    check_size(controller, named, message)
    info = ask(controller, message, LookupInfo, deadline=JOB_DEADLINE)
    if output == "json":
        print_json(info)
        return
    from lmkv.cli.tables import lookup_table

    lookup_table(info)
