"""From voxels to features and lesion loads; laterality; lesion policies."""
