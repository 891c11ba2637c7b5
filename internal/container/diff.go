package container

import (
	"context"
	"fmt"

	"berth"
	"berth/internal/hostroot"
)

// Diff lists what a container of Rootfs "host" has changed. Its error matches
// [berth.ErrInvalid] for one of a directory, which it writes into itself.
func (s *Service) Diff(ctx context.Context, ref string) ([]hostroot.Change, error) {
	c, _, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if c.Rootfs != "host" {
		return nil, fmt.Errorf("diff of container %s: it writes into %s itself, and what was there before is not kept: only --rootfs host has a copy to compare: %w",
			c.Name, c.Rootfs, berth.ErrInvalid)
	}
	changes, err := hostroot.Diff(s.layers(c.ID))
	if err != nil {
		return nil, fmt.Errorf("diff of container %s: %w", c.Name, err)
	}
	return changes, nil
}
