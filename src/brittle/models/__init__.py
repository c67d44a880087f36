"""Networks, training them, distilling them, and the softmax that they end in."""
