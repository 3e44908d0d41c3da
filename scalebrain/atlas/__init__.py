"""Where things are: template space, parcels, nodes, regions, tracts."""
