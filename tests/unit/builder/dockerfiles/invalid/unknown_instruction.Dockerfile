FROM a

  RNU foo
