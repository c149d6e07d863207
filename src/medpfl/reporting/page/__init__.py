"""Parts of the HTML pages: the frame, the answer at the top, the table, the images, and the printed form."""
