FROM bare
RUN one
