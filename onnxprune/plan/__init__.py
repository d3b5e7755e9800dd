"""What exactly goes: allocation, rounding, selectors, and plans as files."""
