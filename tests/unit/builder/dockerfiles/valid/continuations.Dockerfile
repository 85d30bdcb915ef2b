FROM a
RUN one \
    # a comment in between
# and another
    two \

    three \	 
four
  RUN five \\
run six "\\" \
 # the end
