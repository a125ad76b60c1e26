"""Which of two is better, asked of those who use them; and what clicks say once it is known who looked."""
