"""What is done to a clip once it is there: more frames, more pixels, another time, another frame, another sound."""
