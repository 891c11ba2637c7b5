package container

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"berth"
	"berth/internal/cgroup"
)

// Update changes a container's limits and its restart policy, now if it runs and
// whenever it is started. What the kernel refuses is not wanted either: then all
// is as it was.
func (s *Service) Update(ctx context.Context, ref string, change func(*berth.Container) error) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	fail := func(err error) error { return fmt.Errorf("update container %s: %w", c.Name, err) }
	if s.lacks != nil {
		return fail(s.lacks)
	}
	before := c
	if err := change(&c); err != nil {
		return fail(err)
	}
	if c.AutoRemove && c.Restart.Policy != "" && c.Restart.Policy != "no" {
		return fail(fmt.Errorf("it is removed when it ends (--rm), so there is nothing to restart: %w", berth.ErrInvalid))
	}
	if err := cgroup.Check(c.Limits, s.mode); err != nil {
		return fail(err)
	}
	if err := s.update(ctx, c); err != nil {
		return fail(err)
	}
	if r == nil {
		return nil
	}
	if err := s.limit(ctx, c); err != nil {
		// crun leaves what it wrote before the refusal, so the old limits are
		// written again.
		back := context.WithoutCancel(ctx)
		return errors.Join(fail(err), s.update(back, before), s.limit(back, before))
	}
	return nil
}

// limit makes the limits of a running container those that are wanted.
func (s *Service) limit(ctx context.Context, c berth.Container) error {
	b, err := cgroup.UpdateJSON(c.Limits, s.mode)
	if err != nil {
		return err
	}
	if err := s.runtime.Update(ctx, c.ID, b); err != nil {
		// runc says so of a limit of v1 that is below what is used; where the
		// kernel's own word comes through, it is EBUSY.
		if text := err.Error(); strings.Contains(text, "unable to set memory limit") || strings.Contains(text, "busy") {
			return fmt.Errorf("--memory %d: %w: more than that is used, and cannot be taken back: give more", c.Limits.Memory, berth.ErrInUse)
		}
		return err
	}
	return s.group(c.ID).Throttle(c.Limits)
}
