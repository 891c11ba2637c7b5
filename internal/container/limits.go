package container

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/crash"
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
	if r == nil {
		return s.update(ctx, c)
	}
	if _, err := lifted(r.Limits, c.Limits); err != nil {
		return fail(err)
	}
	if err := s.update(ctx, c); err != nil {
		return fail(err)
	}
	crash.Point("container.unlimited")
	if err := s.limit(ctx, r, c.Limits); err != nil {
		// crun leaves what it wrote before the refusal, so the old limits are
		// written again.
		back := context.WithoutCancel(ctx)
		r.Limits = c.Limits
		return errors.Join(fail(err), s.update(back, before), s.limit(back, r, before.Limits))
	}
	return nil
}

// limited reports whether a run has the limits that are wanted.
func limited(c berth.Container, r berth.Run) bool { return reflect.DeepEqual(c.Limits, r.Limits) }

// lifted returns limits as a runtime must be told of them when others held
// before. No runtime has a word for no shares, but a usual number; of others it
// has neither, and what runs keeps them.
func lifted(before, now berth.Limits) (berth.Limits, error) {
	var kept error
	for _, l := range []struct {
		flag string
		gone bool
	}{
		{"--memory-reservation", before.MemoryReservation != 0 && now.MemoryReservation == 0},
		{"--blkio-weight", before.BlkioWeight != 0 && now.BlkioWeight == 0},
		{"--cpuset-cpus", before.CPUs != "" && now.CPUs == ""},
		{"--cpuset-mems", before.Mems != "" && now.Mems == ""},
	} {
		if l.gone {
			kept = errors.Join(kept, fmt.Errorf("%s: no runtime takes it away from what runs: %w: give another value, or stop it first", l.flag, berth.ErrInvalid))
		}
	}
	if before.CPUShares != 0 && now.CPUShares == 0 {
		now.CPUShares = 1024
	}
	return now, kept
}

// limit makes the limits of a running container what they are to be; what cannot
// be taken away is left to the next start.
func (s *Service) limit(ctx context.Context, r *berth.Run, l berth.Limits) error {
	live, _ := lifted(r.Limits, l)
	b, err := cgroup.UpdateJSON(live, s.mode)
	if err != nil {
		return err
	}
	if err := s.runtime.Update(ctx, r.Container, b); err != nil {
		// runc says so of a limit of v1 that is below what is used; where the
		// kernel's own word comes through, it is EBUSY.
		if text := err.Error(); strings.Contains(text, "unable to set memory limit") || strings.Contains(text, "busy") {
			return fmt.Errorf("--memory %d: %w: more than that is used, and cannot be taken back: give more", l.Memory, berth.ErrInUse)
		}
		return err
	}
	if err := s.group(r.Container).Throttle(live); err != nil {
		return err
	}
	crash.Point("container.limited")
	r.Limits = l
	return s.putRun(ctx, *r)
}
