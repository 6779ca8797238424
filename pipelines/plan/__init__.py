"""When the cells that are due would run on given devices: memory, seconds, order, hours and dollars, before anything is started."""
