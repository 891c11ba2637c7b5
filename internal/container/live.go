package container

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"berth"
)

// A PublishChoice says how ports are published beside where.
type PublishChoice struct {
	Network string // "": the one with the default route
	// Replace takes ports over from other sandboxes; Cut ends their connections.
	Replace, Cut bool
}

// Find returns a container by name or id. Its error matches
// [berth.ErrNotFound] if there is none.
func (s *Service) Find(ctx context.Context, ref string) (berth.Container, error) {
	c, _, err := s.find(ctx, ref)
	return c, err
}

// change changes what is wanted of a container, and then the container, if it
// runs: wish before intent. If the second is refused, the first is taken back.
func (s *Service) change(ctx context.Context, ref, what string, wish func(*berth.Container) error, act func(*berth.Container, *berth.Run) error) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	fail := func(err error) error { return fmt.Errorf("%s container %s: %w", what, c.Name, err) }
	if c.Net.Mode != "" {
		return fail(fmt.Errorf("its network is %s, which cannot be changed: %w", c.Net.Mode, berth.ErrInvalid))
	}
	before := c
	if err := wish(&c); err != nil {
		return fail(err)
	}
	if err := s.update(ctx, c); err != nil {
		return err
	}
	if r == nil {
		return nil
	}
	if err := act(&c, r); err != nil { // it says what was done to which sandbox
		return errors.Join(err, s.update(context.WithoutCancel(ctx), before))
	}
	return nil
}

// Connect connects a container to one more network, now if it runs and whenever
// it is started. The endpoint is zero if it does not run.
func (s *Service) Connect(ctx context.Context, ref string, a berth.Attachment) (ep Endpoint, err error) {
	err = s.change(ctx, ref, "connect", func(c *berth.Container) (err error) {
		if a.Network, err = s.o.Networks.Network(ctx, a.Network); err != nil {
			return err
		}
		if a.Interface == "" && slices.ContainsFunc(c.Net.Networks, func(o berth.Attachment) bool { return o.Network == a.Network }) {
			return fmt.Errorf("it is connected to network %s already: %w", a.Network, berth.ErrExists)
		}
		c.Net.Networks = append(slices.Clone(c.Net.Networks), a)
		return nil
	}, func(c *berth.Container, r *berth.Run) error {
		if ep, err = s.o.Networks.Connect(ctx, r.Sandbox, a); err != nil {
			return err
		}
		c.Net.Networks[len(c.Net.Networks)-1].Had = had(ep)
		return errors.Join(s.update(ctx, *c), s.rename(ctx, c, r))
	})
	return ep, err
}

// Disconnect disconnects a container from a network, now and whenever it is
// started.
func (s *Service) Disconnect(ctx context.Context, ref, network string) error {
	network = s.networkName(ctx, network)
	return s.change(ctx, ref, "disconnect", func(c *berth.Container) error {
		left := slices.DeleteFunc(slices.Clone(c.Net.Networks), func(o berth.Attachment) bool { return o.Network == network })
		if len(left) == len(c.Net.Networks) {
			return fmt.Errorf("it is not connected to network %s: %w", network, berth.ErrNotFound)
		}
		c.Net.Networks = left
		return nil
	}, func(c *berth.Container, r *berth.Run) error {
		if err := s.o.Networks.Disconnect(ctx, r.Sandbox, network); err != nil {
			return err
		}
		return s.rename(ctx, c, r)
	})
}

// UpdateNetwork changes the limits of a container's endpoint, the one named dev
// if it is not "", now and whenever it is started.
func (s *Service) UpdateNetwork(ctx context.Context, ref, network, dev string, change berth.RateChange) error {
	network = s.networkName(ctx, network)
	return s.change(ctx, ref, "update", func(c *berth.Container) error {
		c.Net.Networks = slices.Clone(c.Net.Networks)
		i := slices.IndexFunc(c.Net.Networks, func(a berth.Attachment) bool { return a.Network == network && (dev == "" || a.Interface == dev) })
		if i < 0 {
			return fmt.Errorf("it is not connected to network %s: %w", network, berth.ErrNotFound)
		}
		var err error
		c.Net.Networks[i].Rates, err = change.Of(c.Net.Networks[i].Rates)
		return err
	}, func(_ *berth.Container, r *berth.Run) error {
		return s.o.Networks.Update(ctx, r.Sandbox, network, dev, change)
	})
}

// networkName is the name of a network, which containers want it by; of one that
// is not there, what was typed.
func (s *Service) networkName(ctx context.Context, ref string) string {
	name, err := s.o.Networks.Network(ctx, ref)
	if err != nil {
		return ref
	}
	return name
}

// rename writes a running container's names anew.
func (s *Service) rename(ctx context.Context, c *berth.Container, r *berth.Run) error {
	eps, err := s.o.Networks.Endpoints(ctx, r.Sandbox)
	if err == nil {
		err = s.writeNames(c, eps)
	}
	if err != nil {
		return fmt.Errorf("write the names of container %s: %w", c.Name, err)
	}
	return nil
}

// Publish publishes ports of a container, now if it runs and whenever it is
// started.
func (s *Service) Publish(ctx context.Context, ref string, specs []berth.PortSpec, o PublishChoice) (ports []berth.Port, err error) {
	err = s.change(ctx, ref, "publish", func(c *berth.Container) error {
		c.Net.Ports = slices.Clone(c.Net.Ports)
		for _, p := range specs {
			if !slices.Contains(c.Net.Ports, p) {
				c.Net.Ports = append(c.Net.Ports, p)
			}
		}
		return nil
	}, func(c *berth.Container, r *berth.Run) error {
		ports, err = s.o.Networks.Publish(ctx, r.Sandbox, specs, o)
		return err
	})
	if err == nil && o.Replace {
		err = s.lose(ctx, ref, specs)
	}
	return ports, err
}

// lose takes ports out of the wishes of all containers but one: they were taken
// over.
func (s *Service) lose(ctx context.Context, winner string, specs []berth.PortSpec) error {
	w, _, err := s.find(ctx, winner)
	if err != nil {
		return err
	}
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.ID == w.ID || !slices.ContainsFunc(d.Net.Ports, func(p berth.PortSpec) bool { return meant(p, specs) }) {
			continue
		}
		unlock, err := s.lock(ctx, d.ID)
		if err != nil {
			return err
		}
		c, _, err := s.find(ctx, d.ID)
		if err == nil {
			c.Net.Ports = slices.DeleteFunc(slices.Clone(c.Net.Ports), func(p berth.PortSpec) bool { return meant(p, specs) })
			err = s.update(ctx, c)
		}
		unlock()
		if err != nil && !errors.Is(err, berth.ErrNotFound) {
			return err
		}
	}
	return nil
}

// meant reports whether one of specs names a wanted port, by what it has.
func meant(p berth.PortSpec, specs []berth.PortSpec) bool {
	return slices.ContainsFunc(specs, func(s berth.PortSpec) bool {
		return s.Protocol == p.Protocol && (s.HostLow == 0 || p.HostLow != 0 && s.HostLow <= p.HostHigh && p.HostLow <= s.HostHigh) &&
			(s.Port == 0 || s.Port == p.Port || s.HostLow != 0) && (!s.HostIP.IsValid() || !p.HostIP.IsValid() || s.HostIP == p.HostIP)
	})
}

// Unpublish takes ports of a container back, now and for whenever it is started;
// without specs all.
func (s *Service) Unpublish(ctx context.Context, ref string, specs []berth.PortSpec) (gone []berth.Port, err error) {
	err = s.change(ctx, ref, "unpublish", func(c *berth.Container) error {
		c.Net.Ports = slices.DeleteFunc(slices.Clone(c.Net.Ports), func(p berth.PortSpec) bool {
			return len(specs) == 0 || meant(p, specs)
		})
		return nil
	}, func(c *berth.Container, r *berth.Run) error {
		if gone, err = s.o.Networks.Unpublish(ctx, r.Sandbox, specs); err != nil {
			return err
		}
		// A port that was chosen at random is known by its number only now.
		c.Net.Ports = slices.DeleteFunc(c.Net.Ports, func(p berth.PortSpec) bool {
			return p.HostLow == 0 && slices.ContainsFunc(gone, func(g berth.Port) bool { return g.Protocol == p.Protocol && g.To.Port() == p.Port })
		})
		return s.update(ctx, *c)
	})
	return gone, err
}
