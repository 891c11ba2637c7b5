package container

import (
	"cmp"
	"context"
	"fmt"

	"berth"
	"berth/internal/rootfs"
)

// Diff lists what a container of an image, or of Rootfs "host", has changed. Its error matches
// [berth.ErrInvalid] for one of a directory, which it writes into itself.
func (s *Service) Diff(ctx context.Context, ref string) ([]rootfs.Change, error) {
	c, _, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	var changes []rootfs.Change
	switch {
	case c.ImageID != "" && !exists(s.copied(c.ID)):
		var lower []string
		if lower, err = s.o.Images.Lower(ctx, c.ImageID); err == nil {
			changes, err = rootfs.ImageDiff(s.layers(c.ID), lower)
		}
	case c.Rootfs == hostRoot:
		changes, err = rootfs.Diff(s.layers(c.ID))
	default:
		err = fmt.Errorf("it writes into %s itself, and what was there before is not kept: an image and --rootfs host have something to compare with: %w",
			cmp.Or(c.Rootfs, s.copied(c.ID)), berth.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("diff of container %s: %w", c.Name, err)
	}
	return changes, nil
}
