"""The chat template: turns without role words, as UniMedVL and BAGEL were trained."""

# The reference's system prompts of think mode (UniMedVL's inferencer), character for character: the weights know them.
THINK_SYSTEM_PROMPT_TEXT = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer.\n"
    "The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> "
    "answer here"
)
THINK_SYSTEM_PROMPT_IMAGE = (
    "You should first think about the planning process in your mind, and then generate the image.\n"
    "The planning process is enclosed within <think> </think> tags; that is, <think> planning process here </think> "
    "image here.\n"
)

# Variables: generation_mode ("text", "image", "interleaved"), think, add_generation_prompt. Every text item is a turn
# of its own; roles decide nothing but the `generation` marks, which hold what an answering model has to produce.
# vLLM looks for a loop over `content`, to see that messages are lists of items.
CHAT_TEMPLATE = """\
{%- set mode = generation_mode | default('text', true) -%}
{%- if think -%}
    {{- '<|im_start|>' -}}
    {%- if mode == 'text' -%}
        {{- 'THINK_SYSTEM_PROMPT_TEXT' -}}
    {%- else -%}
        {{- 'THINK_SYSTEM_PROMPT_IMAGE' -}}
    {%- endif -%}
    {{- '<|im_end|>' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('Unknown role ' ~ message.role ~ ': use system, user or assistant.') -}}
    {%- endif -%}
    {%- set content = message.content -%}
    {%- if content is string -%}
        {%- set content = [{'type': 'text', 'text': content}] -%}
    {%- endif -%}
    {%- for item in content -%}
        {%- if item.type == 'text' -%}
            {{- '<|im_start|>' -}}
            {%- if message.role == 'assistant' -%}
                {%- generation -%}
                    {{- item.text + '<|im_end|>' -}}
                {%- endgeneration -%}
            {%- else -%}
                {{- item.text + '<|im_end|>' -}}
            {%- endif -%}
        {%- elif item.type == 'image' -%}
            {%- if mode != 'text' -%}
                {{- '<|vision_start|><|vision_pad|><|vision_end|>' -}}
            {%- endif -%}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
        {%- else -%}
            {{- raise_exception('Unknown content type ' ~ item.type ~ ': use text or image.') -}}
        {%- endif -%}
    {%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt and mode == 'text' -%}
    {{- '<|im_start|>' -}}
{%- endif -%}
"""
for _name in ("THINK_SYSTEM_PROMPT_TEXT", "THINK_SYSTEM_PROMPT_IMAGE"):
    CHAT_TEMPLATE = CHAT_TEMPLATE.replace(_name, globals()[_name].replace("\n", "\\n"))
