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

// Disconnect disconnects sandboxes from a network and gives everything back:
// addresses, ports, links, connections. A foreign sandbox is forgotten with its
// last endpoint.
func (e *Engine) Disconnect(ctx context.Context, network string, sandboxes []string, o DisconnectOptions) error {
	n, err := e.network(ctx, network)
	if err != nil {
		return fmt.Errorf("disconnect from %s: %w", cut(network), err)
	}
	var ids []string
	for _, ref := range sandboxes {
		sb, err := e.recorded(ctx, ref)
		if err == nil {
			err = e.connected(ctx, sb, n, o)
		}
		if err != nil {
			return fmt.Errorf("disconnect %s from %s: %w", cut(ref), n.Name, err)
		}
		ids = append(ids, sb.ID)
	}
	err = e.leave(ctx, ids, func(ep berth.Endpoint) bool {
		return ep.Network == n.ID && (o.Interface == "" || ep.Interface == o.Interface)
	})
	if err != nil {
		return fmt.Errorf("disconnect from %s: %w", n.Name, err)
	}
	return nil
}

func (e *Engine) connected(ctx context.Context, sb berth.Sandbox, n berth.Network, o DisconnectOptions) error {
	return e.store.View(ctx, func(tx *store.Tx) error {
		eps, err := tx.EndpointsOf(sb.ID)
		if err != nil {
			return err
		}
		for _, ep := range eps {
			if ep.Network == n.ID && (o.Interface == "" || ep.Interface == o.Interface) {
				return nil
			}
		}
		return fmt.Errorf("it is not connected: %w", berth.ErrNotFound)
	})
}

// leave disconnects those endpoints of some sandboxes that pick chooses (nil:
// all), together.
func (e *Engine) leave(ctx context.Context, ids []string, pick func(berth.Endpoint) bool) error {
	var l departure
	locks := func() ([]lock, error) {
		l = departure{ids: ids, pick: pick}
		return l.locks(ctx, e)
	}
	err := e.do(ctx, locks, func(ctx context.Context) error {
		err := e.commit(ctx, l.retire, nil)
		if err != nil {
			return err
		}
		return e.store.Update(ctx, l.forget)
	})
	for _, id := range l.gone { // best effort: a lock file without its sandbox is only a file
		_ = e.store.Forget(store.LockSandbox, id)
	}
	return err
}

// A departure is the disconnection of endpoints.
type departure struct {
	ids     []string
	pick    func(berth.Endpoint) bool
	leaving []berth.Endpoint
	gone    []string // sandboxes that are forgotten with them
	touch   touch
}

// locks finds the endpoints and what must be locked for them: the networks,
// alone if ports go too, the sandboxes, and the other ends of wires.
func (l *departure) locks(ctx context.Context, e *Engine) ([]lock, error) {
	var ls []lock
	l.touch.sandboxes = append(l.touch.sandboxes, l.ids...)
	err := e.store.View(ctx, func(tx *store.Tx) error {
		for _, id := range l.ids {
			ls = append(ls, lock{store.LockSandbox, id, true})
			eps, err := tx.EndpointsOf(id)
			if err != nil {
				return err
			}
			for _, ep := range eps {
				if l.pick != nil && !l.pick(ep) {
					continue
				}
				l.leaving = append(l.leaving, ep)
				published, err := tx.HasPorts(ep.Network, ep.Sandbox, ep.Interface)
				if err != nil {
					return err
				}
				if published {
					l.touch.networks = append(l.touch.networks, ep.Network)
				}
				ls = append(ls, lock{store.LockNetwork, ep.Network, published})
				others, err := wireEnds(tx, ep)
				if err != nil {
					return err
				}
				for _, o := range others {
					l.touch.sandboxes = append(l.touch.sandboxes, o.Sandbox)
					ls = append(ls, lock{store.LockSandbox, o.Sandbox, true})
				}
			}
		}
		return nil
	})
	return ls, err
}

// wireEnds returns the endpoints at the other end of a link without a host
// end.
func wireEnds(tx *store.Tx, ep berth.Endpoint) ([]berth.Endpoint, error) {
	n, err := tx.Network(ep.Network)
	if err != nil || n.HostEnd {
		return nil, ignore(err, berth.ErrNotFound)
	}
	on, err := tx.EndpointsOn(n.ID)
	return slices.DeleteFunc(on, func(o berth.Endpoint) bool { return o.Sandbox == ep.Sandbox }), err
}

// retire marks the endpoints as leaving; their addresses stay taken until
// their links have gone.
func (l *departure) retire(tx *store.Tx) (plan.Delta, error) {
	slices.Sort(l.touch.sandboxes)
	l.touch.sandboxes = slices.Compact(l.touch.sandboxes)
	for _, ep := range l.leaving {
		now, err := tx.Endpoint(ep.Sandbox, ep.Interface)
		if err != nil || now.ID != ep.ID {
			return plan.Delta{}, errAgain
		}
		if now.Leaving {
			return plan.Delta{}, errHeal // a crash left it half way
		}
		ports, err := tx.PortsTo(ep)
		if err != nil {
			return plan.Delta{}, err
		}
		if len(ports) > 0 && !slices.Contains(l.touch.networks, ep.Network) {
			return plan.Delta{}, errAgain // published since
		}
		l.touch.going = append(l.touch.going, ports...)
	}
	return l.touch.around(tx, func() error {
		if err := tx.DeletePorts(l.touch.going...); err != nil {
			return err
		}
		for _, ep := range l.leaving {
			if err := retire(tx, ep); err != nil {
				return err
			}
		}
		return nil
	})
}

// forget forgets the endpoints, and foreign sandboxes without any.
func (l *departure) forget(tx *store.Tx) error {
	for _, ep := range l.leaving {
		if err := tx.DeleteEndpoint(ep.Sandbox, ep.Interface); err != nil {
			return err
		}
	}
	for _, id := range l.ids {
		sb, err := tx.Sandbox(id)
		if errors.Is(err, berth.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		eps, err := tx.EndpointsOf(id)
		if err != nil {
			return err
		}
		if len(eps) == 0 && (!sb.Owned || !alive(sb)) {
			l.gone = append(l.gone, id)
			if err := tx.DeleteSandbox(id); err != nil {
				return err
			}
		}
	}
	return nil
}
