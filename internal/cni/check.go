package cni

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"berth"
	"berth/engine"
)

// check is CHECK: the attachment is recorded as its result says, and the kernel
// is what the record wants.
func (c *call) check(ctx context.Context, e *engine.Engine) (types.Result, error) {
	if c.conf.prevResult == nil {
		return nil, fail(codeConfig, "prevResult: CHECK needs the result of ADD")
	}
	eps, err := c.endpoints(ctx, e)
	if err != nil {
		return nil, err
	}
	if len(eps) == 0 {
		return nil, fail(codeUnknown, "container %s is not attached to network %s by %s", short(c.container), c.conf.Name, c.ifname)
	}
	ep := eps[0]
	var lines []string
	if ep.Labels[labelPending] != "" || ep.Leaving {
		lines = append(lines, "its ADD or DEL was not finished")
	}
	told, err := c.compare(ep)
	if err != nil {
		return nil, err
	}
	r, err := e.CheckSandbox(ctx, ep.Sandbox)
	if err != nil {
		return nil, err
	}
	lines = append(append(lines, told...), differences(r)...)
	if len(lines) > 0 {
		return nil, &Error{Code: codeDiffers, Msg: "attachment " + short(c.container) + " " + c.ifname + " is not as it should be", Details: strings.Join(lines, "; ")}
	}
	return nil, c.delegate(ctx, "CHECK")
}

// compare says what of the result of ADD is not what is recorded. A later
// plugin may have added to it.
func (c *call) compare(ep berth.Endpoint) (lines []string, err error) {
	raw, err := json.Marshal(c.conf.prevResult)
	if err != nil {
		return nil, err
	}
	r, err := parseResult(raw, c.conf.CNIVersion)
	if err != nil {
		return nil, fail(codeDecode, "prevResult: %v", err)
	}
	mine := -1
	for i, l := range r.Interfaces {
		if l.Name == c.ifname && l.Sandbox == c.netns {
			mine = i
		}
	}
	if mine < 0 {
		lines = append(lines, "the result of ADD has no interface "+c.ifname+" in "+short(c.netns))
	}
	for _, a := range ep.Addrs {
		found := false
		for _, ip := range r.IPs {
			p, err := prefixOf(ip.Address)
			found = found || err == nil && p == a
		}
		if !found {
			lines = append(lines, "the result of ADD has no address "+a.String())
		}
	}
	for _, ip := range r.IPs {
		p, err := prefixOf(ip.Address)
		if err != nil || ip.Interface == nil || *ip.Interface != mine {
			continue
		}
		if p.Addr() != ep.Addr4() && p.Addr() != ep.Addr6() {
			lines = append(lines, "address "+p.String()+" of the result of ADD is not recorded")
		}
	}
	return lines, nil
}

func differences(r engine.Report) (lines []string) {
	for _, part := range []struct {
		what string
		of   []string
	}{{"missing: ", r.Missing}, {"too much: ", r.Extra}, {"changed: ", r.Changed}, {"", r.Dead}} {
		for _, l := range part.of {
			lines = append(lines, part.what+l)
		}
	}
	return lines
}

// status is STATUS: why an ADD would fail, or what those connected lack.
func (c *call) status(ctx context.Context, e *engine.Engine) (types.Result, error) {
	if err := c.delegate(ctx, "STATUS"); err != nil {
		return nil, err
	}
	n, err := e.Network(ctx, c.conf.network)
	if errors.Is(err, berth.ErrNotFound) {
		return nil, c.couldMake(ctx)
	}
	if err == nil {
		err = c.conf.agrees(n)
	}
	if err == nil && !c.conf.delegated() {
		err = e.Room(ctx, n.ID, c.conf.ipam.ranges...)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	r, err := e.CheckNetwork(ctx, n.ID)
	if err != nil {
		return nil, unavailable(err)
	}
	if lines := differences(r); len(lines) > 0 {
		return nil, &Error{Code: codeLimited, Msg: "network " + n.Name + " is not as it should be; berth reconcile mends it", Details: strings.Join(lines, "; ")}
	}
	return nil, nil
}

// couldMake tries to make the network on a copy of the store.
func (c *call) couldMake(ctx context.Context) error {
	if c.conf.delegated() {
		return nil // its subnets come with the first address
	}
	o := c.opened
	o.DryRun = true
	e, err := engine.Open(ctx, o)
	if err != nil {
		return unavailable(err)
	}
	_, err = e.CreateNetwork(ctx, c.networkSpec())
	if err = errors.Join(err, e.Close()); err != nil {
		return unavailable(err)
	}
	return nil
}

func unavailable(err error) error { return fail(codeUnavailable, "%v", err) }
