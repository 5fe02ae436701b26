"""What the cells of a bars file say: headers, times of opening, numbers, prices and their side."""
