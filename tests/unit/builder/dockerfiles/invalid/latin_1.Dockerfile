FROM a
RUN echo é
