package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"berth"
	"berth/engine"
)

// del is DEL. Whatever is not there is no error: namespace, network, record.
func (c *call) del(ctx context.Context, e *engine.Engine) (types.Result, error) {
	eps, err := c.endpoints(ctx, e)
	if err != nil {
		return nil, err
	}
	errs := []error{}
	for _, ep := range eps {
		errs = append(errs, c.disconnect(ctx, e, ep))
	}
	return nil, errors.Join(append(errs, c.delegate(ctx, "DEL"))...)
}

// gc is GC: what is of this configuration and not in the list goes. What a
// crash left half way is finished, and a network that was made for the
// configuration goes when nobody uses it.
func (c *call) gc(ctx context.Context, e *engine.Engine) (types.Result, error) {
	valid := map[types.GCAttachment]bool{}
	for _, a := range c.conf.valid {
		valid[a] = true
	}
	eps, err := e.FindEndpoints(ctx, c.conf.network, map[string]string{labelNetwork: c.conf.Name})
	if errors.Is(err, berth.ErrNotFound) {
		err = nil
	}
	errs := []error{err}
	for _, ep := range eps {
		a := types.GCAttachment{ContainerID: ep.Labels[labelContainer], IfName: ep.Labels[labelInterface]}
		if valid[a] || a.ContainerID == "" {
			continue
		}
		if err := c.disconnect(ctx, e, ep); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", short(a.ContainerID), err))
		}
	}
	if _, err := e.Reconcile(ctx); err != nil {
		errs = append(errs, err)
	}
	if len(valid) == 0 {
		errs = append(errs, c.dropNetwork(ctx, e))
	}
	return nil, errors.Join(append(errs, c.delegate(ctx, "GC"))...)
}

// dropNetwork removes the network if it was made for this configuration and
// nothing is connected to it.
func (c *call) dropNetwork(ctx context.Context, e *engine.Engine) error {
	n, err := e.Network(ctx, c.conf.network)
	if err == nil && n.Labels[labelNetwork] == c.conf.Name {
		err = e.RemoveNetwork(ctx, n.ID, engine.RemoveOptions{})
	}
	if errors.Is(err, berth.ErrInUse) || errors.Is(err, berth.ErrNotFound) {
		return nil
	}
	return err
}
