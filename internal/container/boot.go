package container

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"berth"
)

// Boot starts the containers that are to run after the host has booted, as
// docker's daemon does when it starts: of policy always all, of the others that
// restart those that were not stopped. What ran without such a policy has ended
// with the host, and is removed if it was to be. Those that run already stay as
// they are, so it may be called at any time and again.
//
// It returns the names of those it has started. One that cannot be started keeps
// none of the others from it, and is tried again at the next boot.
func (s *Service) Boot(ctx context.Context) (started []string, err error) {
	// What is left of an earlier boot, or of what died since, is in nobody's way.
	_, err = s.Reconcile(ctx)
	errs := []error{err}
	all, err := s.List(ctx)
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	var mu sync.Mutex
	waves(all, func(d Detail) {
		up, err := s.boot(ctx, d.ID)
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
		if up {
			started = append(started, d.Name)
		}
	})
	slices.Sort(started)
	return started, errors.Join(errs...)
}

// atOnce is how many containers are started side by side: they wait for the
// kernel and the runtime more than they compute.
const atOnce = 8

// waves does something to all containers, several at once; to one that uses a
// namespace of another when the other is done.
func waves(all []Detail, do func(Detail)) {
	left := slices.Clone(all)
	for len(left) > 0 {
		isLeft := func(ref string) bool {
			return slices.ContainsFunc(left, func(o Detail) bool {
				return o.Name == ref || strings.HasPrefix(o.ID, ref)
			})
		}
		var now, later []Detail
		for _, d := range left {
			if slices.ContainsFunc(needs(d.Container), isLeft) {
				later = append(later, d)
			} else {
				now = append(now, d)
			}
		}
		if len(now) == 0 { // they wait for each other, and none can start
			now, later = later, nil
		}
		var wg sync.WaitGroup
		slots := make(chan struct{}, atOnce)
		for _, d := range now {
			slots <- struct{}{}
			wg.Go(func() {
				do(d)
				<-slots
			})
		}
		wg.Wait()
		left = later
	}
}

// needs are the containers whose namespaces a container uses.
func needs(c berth.Container) (refs []string) {
	for _, m := range []string{c.Net.Mode, c.PidMode} {
		if kind, ref := mode(m); kind == "container" {
			refs = append(refs, ref)
		}
	}
	return refs
}

// boot starts one container if it is to run, and reports whether it did.
func (s *Service) boot(ctx context.Context, id string) (started bool, err error) {
	c, r, unlock, err := s.locked(ctx, id)
	if errors.Is(err, berth.ErrNotFound) {
		return false, nil // one with --rm that has just been taken away
	}
	if err != nil {
		return false, err
	}
	defer unlock()
	switch {
	case r != nil:
		return false, nil
	case bootable(c):
		c.RestartCount, c.Delay = 0, 0
		err := s.start(ctx, &c, nil)
		return err == nil, err
	case c.Wanted && c.AutoRemove:
		return false, s.forget(ctx, &c)
	case c.Wanted:
		// As docker, which does not know how it ended either.
		c.Wanted, c.Last = false, berth.Exit{Code: 255, Finished: time.Now().UTC()}
		return false, s.update(ctx, c)
	}
	return false, nil
}

// bootable reports whether a container that does not run is to be started when
// the host has booted. A start that failed has left it unwanted, though nobody
// stopped it.
func bootable(c berth.Container) bool {
	failed := c.Last.Started.IsZero() && c.Last.Error != ""
	switch c.Restart.Policy {
	case "always":
		return true
	case "unless-stopped", "on-failure":
		return c.Wanted || failed
	}
	return false
}
