"""What is fed in place of samples when the thinking budget is used up."""

# The documentation's string (QwenLM/Qwen3, quickstart): 24 tokens of the official vocabulary.
STOP_THINKING_TEXT = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)
# As printed in the technical report (arXiv 2505.09388, section 4.3), stray full stop included.
PAPER_STOP_THINKING_TEXT = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>.\n\n"
)
NAMED_STOP_TEXTS = {"documentation": STOP_THINKING_TEXT, "paper": PAPER_STOP_THINKING_TEXT}
