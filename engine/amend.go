package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"berth"
	"berth/internal/plan"
	"berth/internal/store"
)

// An Amendment is what of a network changes while it is in use. Its options are
// those of [NetworkSpec].
type Amendment struct {
	Open, Isolated, Masquerade *bool          // nil: as it is
	Subnets                    []berth.Subnet // more of them; those it has are no error
}

// AmendNetwork changes a network of which others made the bridge: whose ports
// and addresses are not Berth's, so that nothing but the firewall has to change.
// Its errors match [berth.ErrInvalid] for another network, [berth.ErrConflict]
// for a subnet that is somebody else's.
func (e *Engine) AmendNetwork(ctx context.Context, ref string, a Amendment) (berth.Network, error) {
	n, err := e.amendNetwork(ctx, ref, a)
	if err != nil {
		return n, fmt.Errorf("change network %s: %w", cut(ref), err)
	}
	return n, nil
}

func (e *Engine) amendNetwork(ctx context.Context, ref string, a Amendment) (berth.Network, error) {
	n, err := e.network(ctx, ref)
	if err != nil {
		return n, err
	}
	if n.Owned && n.Driver == berth.Bridge {
		return n, fmt.Errorf("its bridge is Berth's: %w", berth.ErrInvalid)
	}
	if with, err := a.of(n, nil); err == nil && same(n, with) {
		return n, nil
	}
	host, err := e.survey()
	if err != nil {
		return n, err
	}
	var was, now berth.Network
	locks := func() ([]lock, error) { return []lock{baseLock, {store.LockNetwork, n.ID, true}}, nil }
	err = e.do(ctx, locks, func(ctx context.Context) error {
		return e.commit(ctx, func(tx *store.Tx) (plan.Delta, error) {
			if was, err = tx.Network(n.ID); err != nil {
				return plan.Delta{}, err
			}
			now, err = a.of(was, func(s berth.Subnet) (berth.Subnet, error) { return e.more(tx, was, s, host) })
			if err != nil {
				return plan.Delta{}, err
			}
			t := touch{base: true, networks: []string{n.ID}}
			if t.sandboxes, err = sandboxesOn(tx, n.ID); err != nil {
				return plan.Delta{}, err
			}
			return t.around(tx, func() error { return tx.PutNetwork(now) })
		}, func(tx *store.Tx) error {
			if _, err := tx.Network(n.ID); err != nil {
				return ignore(err, berth.ErrNotFound)
			}
			return tx.PutNetwork(was)
		})
	})
	return now, err
}

// of is a network as it is after the change. Without a check subnets are taken
// as they are.
func (a Amendment) of(n berth.Network, check func(berth.Subnet) (berth.Subnet, error)) (berth.Network, error) {
	for _, f := range []struct {
		want *bool
		have *bool
	}{{a.Open, &n.Open}, {a.Isolated, &n.Isolated}, {a.Masquerade, &n.Masquerade}} {
		if f.want != nil {
			*f.have = *f.want
		}
	}
	n.Subnets = slices.Clone(n.Subnets)
	for _, s := range a.Subnets {
		if slices.ContainsFunc(n.Subnets, func(o berth.Subnet) bool { return o.Prefix == s.Prefix }) {
			continue
		}
		if check != nil {
			var err error
			if s, err = check(s); err != nil {
				return n, err
			}
		}
		n.Subnets = append(n.Subnets, s)
	}
	return n, nil
}

func same(a, b berth.Network) bool {
	return a.Open == b.Open && a.Isolated == b.Isolated && a.Masquerade == b.Masquerade && len(a.Subnets) == len(b.Subnets)
}

// more checks one more subnet of a network.
func (e *Engine) more(tx *store.Tx, n berth.Network, s berth.Subnet, host survey) (berth.Subnet, error) {
	all, err := tx.Networks()
	if err != nil {
		return s, err
	}
	for _, o := range n.Subnets {
		if o.Prefix.Overlaps(s.Prefix) {
			return s, fmt.Errorf("subnet %s overlaps its %s: %w", s.Prefix, o.Prefix, berth.ErrConflict)
		}
	}
	all = slices.DeleteFunc(all, func(o berth.Network) bool { return o.ID == n.ID })
	return e.subnet(n, s, all, nil, host)
}

func sandboxesOn(tx *store.Tx, network string) (ids []string, err error) {
	eps, err := tx.EndpointsOn(network)
	for _, ep := range eps {
		if !slices.Contains(ids, ep.Sandbox) {
			ids = append(ids, ep.Sandbox)
		}
	}
	return ids, err
}

// LimitEndpoint sets the whole of an endpoint's limits. Its errors are those of
// [Engine.UpdateEndpoint].
func (e *Engine) LimitEndpoint(ctx context.Context, ep berth.Endpoint, r berth.Rates) (berth.Endpoint, error) {
	return e.UpdateEndpoint(ctx, ep.Network, ep.Sandbox, UpdateOptions{Interface: ep.Interface, whole: &r})
}

// FindEverywhere is FindEndpoints on all networks.
func (e *Engine) FindEverywhere(ctx context.Context, labels map[string]string, sandboxes ...string) ([]berth.Endpoint, error) {
	var all []berth.Network
	err := e.store.View(ctx, func(tx *store.Tx) (err error) {
		all, err = tx.Networks()
		return err
	})
	var out []berth.Endpoint
	for _, n := range all {
		eps, more := e.FindEndpoints(ctx, n.ID, labels, sandboxes...)
		if errors.Is(more, berth.ErrNotFound) {
			continue
		}
		err = errors.Join(err, more)
		out = append(out, eps...)
	}
	return out, err
}
