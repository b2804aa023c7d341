"""A policy-gradient stage (GRPO) after fine-tuning: from which starting models does it improve the reward?"""
