package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/oci"
	"berth/internal/store"
)

// Check tells, in a line each, which containers are not as they were left: by a
// process that was killed.
func (s *Service) Check(ctx context.Context) ([]string, error) {
	return s.each(ctx, func(berth.Container, *berth.Run) error { return nil })
}

// Reconcile takes away what Check tells of, starts again what should run, and
// removes what is left of containers that are not there. It returns what Check
// would have.
func (s *Service) Reconcile(ctx context.Context) ([]string, error) {
	told, err := s.each(ctx, func(c berth.Container, r *berth.Run) error {
		if r != nil && !s.over(*r) {
			return s.limit(ctx, r, c.Limits)
		}
		if r != nil {
			if err := s.settle(ctx, &c, r); err != nil {
				return err
			}
		}
		if s.state(c, berth.Run{}) != Restarting {
			return nil
		}
		return s.again(ctx, &c)
	})
	return told, errors.Join(err, s.sweep(ctx))
}

// each hands every container that is not as it should be to fn, locked.
func (s *Service) each(ctx context.Context, fn func(berth.Container, *berth.Run) error) (told []string, err error) {
	s.tools()
	all, runs, err := s.records(ctx)
	errs := []error{err}
	for _, c := range all {
		r, ok := runs[c.ID]
		if ok && s.fault(c, &r) == "" || !ok && s.fault(c, nil) == "" {
			continue
		}
		if ok && s.ending(r) {
			if err := s.leave(ctx, r); err != nil {
				return told, err
			}
		}
		unlock, err := s.lock(ctx, c.ID)
		if err != nil {
			return told, err
		}
		// Whoever was about to mend it may have done so by now.
		c, now, err := s.find(ctx, c.ID)
		if errors.Is(err, berth.ErrNotFound) {
			unlock()
			continue
		}
		if why := s.fault(c, now); why != "" && err == nil {
			told = append(told, fmt.Sprintf("container %s: %s", c.Name, why))
			err = fn(c, now)
		}
		unlock()
		errs = append(errs, err)
	}
	return told, errors.Join(errs...)
}

// fault says what is wrong with a container that is locked; "" if nothing is.
func (s *Service) fault(c berth.Container, r *berth.Run) string {
	switch {
	case r == nil && s.state(c, berth.Run{}) == Restarting && !s.kept(c):
		return "nobody is left to start it again"
	case r == nil:
		return ""
	case r.Started.IsZero():
		return "it is half made"
	case s.ended(c.ID):
		return "it has ended and was not taken away"
	case s.dead(*r):
		return "its monitor is dead"
	case !limited(c, *r):
		return "it has not the limits that are wanted"
	}
	return ""
}

// sweep removes what is left of containers that are not there.
func (s *Service) sweep(ctx context.Context) error {
	here, waited, kept := names(filepath.Join(s.o.Run, "containers")), names(s.exits()), names(filepath.Join(s.o.Root, "containers"))
	if s.runtime.Root != "" {
		here = append(here, names(s.runtime.Root)...)
	}
	// What was made before this look has a record that it finds.
	all, runs, err := s.records(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, c := range all {
		known[c.ID] = true
	}
	for id := range runs { // with --rm a container is forgotten before its run
		if !known[id] {
			here = append(here, id)
		}
	}
	var errs []error
	for _, id := range here {
		if _, runs := runs[id]; !runs || !known[id] {
			errs = append(errs, s.sweepRun(ctx, id))
		}
	}
	for _, file := range waited {
		_, p, waits := attendant(file)
		if _, runs := runs[file]; waits && !oci.Alive(p) || !waits && !runs {
			errs = append(errs, gone(os.Remove(filepath.Join(s.exits(), file))))
		}
	}
	for _, file := range names(filepath.Join(s.o.Run, "locks")) {
		if id, ok := strings.CutPrefix(file, "c-"); ok && !known[id] {
			errs = append(errs, s.store.Forget(store.LockContainer, id))
		}
	}
	for _, id := range kept {
		if !known[id] {
			errs = append(errs, s.discard(&berth.Container{ID: id, Rootfs: hostRoot}))
		}
	}
	return errors.Join(append(errs, s.prune(ctx))...)
}

// sweepRun takes a container out of the kernel that has no run, or is forgotten.
func (s *Service) sweepRun(ctx context.Context, id string) error {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	c, r, err := s.find(ctx, id)
	forgotten := errors.Is(err, berth.ErrNotFound)
	if err != nil && !forgotten || err == nil && r != nil || oci.Keeper(s.bundle(id)).Pid != 0 {
		return err
	}
	if forgotten {
		c = berth.Container{ID: id, Name: id, Rootfs: hostRoot}
	}
	return s.clear(ctx, &c, &berth.Run{Container: id})
}

// names are those of the entries of a directory, which may not be there.
func names(dir string) (out []string) {
	entries, _ := os.ReadDir(dir) // what cannot be listed was not made here
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// prune removes the control groups that containers have in common, after the
// last of them. The monitors' stays, empty, for the next command if the last
// container ends by itself: what its monitor runs is in it. To leave it first,
// remove it and make it again for the next costs each lone "run" 13 ms of 72. Within a look at the store nobody records the intent to start
// one.
func (s *Service) prune(ctx context.Context) error {
	groups := []cgroup.Group{s.mode.Group("/berth"), s.mode.Group(cgroup.MonitorGroup)}
	if !groups[0].Exists() && !groups[1].Exists() {
		return nil
	}
	return s.store.View(ctx, func(tx *store.Tx) error {
		runs, err := tx.Runs()
		if err != nil || len(runs) > 0 {
			return err
		}
		return errors.Join(groups[0].Prune(), groups[1].Prune())
	})
}
