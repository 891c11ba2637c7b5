package engine

import (
	"context"
	"fmt"

	"berth"
	"berth/internal/plan"
	"berth/internal/store"
)

// UpdateEndpoint changes an endpoint while it is in use. Its errors match
// [berth.ErrNotFound] if the sandbox is not connected, [berth.ErrInvalid] if it
// has several endpoints on the network and none is named.
func (e *Engine) UpdateEndpoint(ctx context.Context, network, sandbox string, o UpdateOptions) (berth.Endpoint, error) {
	ep, err := e.updateEndpoint(ctx, network, sandbox, o)
	if err != nil {
		return ep, fmt.Errorf("update %s on %s: %w", cut(sandbox), cut(network), err)
	}
	return ep, nil
}

func (e *Engine) updateEndpoint(ctx context.Context, network, sandbox string, o UpdateOptions) (ep berth.Endpoint, err error) {
	n, err := e.network(ctx, network)
	if err != nil {
		return ep, err
	}
	sb, err := e.recorded(ctx, sandbox)
	if err != nil {
		return ep, err
	}
	locks := func() ([]lock, error) {
		return []lock{{store.LockNetwork, n.ID, false}, {store.LockSandbox, sb.ID, true}}, nil
	}
	var was berth.Endpoint
	err = e.do(ctx, locks, func(ctx context.Context) error {
		err := e.commit(ctx, func(tx *store.Tx) (plan.Delta, error) {
			if was, err = endpointOn(tx, n, sb.ID, o.Interface); err != nil {
				return plan.Delta{}, err
			}
			ep = was
			if o.whole != nil {
				ep.Rates, err = *o.whole, o.whole.Check()
			} else {
				ep.Rates, err = o.Rates.Of(was.Rates)
			}
			if err != nil {
				return plan.Delta{}, err
			}
			if err := limitable(n, ep); err != nil {
				return plan.Delta{}, err
			}
			return touch{sandboxes: []string{sb.ID}}.around(tx, func() error { return tx.PutEndpoint(ep, scope(n)) })
		}, func(tx *store.Tx) error {
			now, err := tx.Endpoint(was.Sandbox, was.Interface)
			if err != nil || now.ID != was.ID || now.Leaving {
				return ignore(err, berth.ErrNotFound)
			}
			return tx.PutEndpoint(was, scope(n))
		})
		if err == nil && ep.Rates == was.Rates && !e.o.DryRun {
			// What is found done already may be a crash's, which recorded it only.
			if whole, err := e.whole(ctx, sb.ID); err == nil && !whole {
				return errDoubt
			}
		}
		return err
	})
	return ep, err
}

// endpointOn returns a sandbox's endpoint on a network: the named one, or the
// only one.
func endpointOn(tx *store.Tx, n berth.Network, sandbox, dev string) (ep berth.Endpoint, err error) {
	eps, err := tx.EndpointsOf(sandbox)
	if err != nil {
		return ep, err
	}
	found := 0
	for _, one := range eps {
		if one.Network != n.ID || dev != "" && one.Interface != dev {
			continue
		}
		if one.Leaving {
			return ep, errHeal // a crash left it half way
		}
		ep = one
		found++
	}
	switch found {
	case 0:
		return ep, fmt.Errorf("it is not connected: %w", berth.ErrNotFound)
	case 1:
		return ep, nil
	}
	return ep, fmt.Errorf("it has %d endpoints there: name one with --interface: %w", found, berth.ErrInvalid)
}

// limitable refuses limits where the host has no end to hold back at.
func limitable(n berth.Network, ep berth.Endpoint) error {
	if ep.Rates == (berth.Rates{}) {
		return nil
	}
	if ep.Found && ep.Link == "" {
		return fmt.Errorf("interface %s is no end of a pair whose other end is on the host, where a limit stands: %w", ep.Interface, berth.ErrInvalid)
	}
	if n.HostEnd {
		return nil
	}
	return fmt.Errorf("a link between two sandboxes does not pass the host, where a limit stands: use a bridge network: %w", berth.ErrInvalid)
}
