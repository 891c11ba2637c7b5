package cni

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"berth"
)

// delegate executes the program that gives addresses, if there is one, with a
// command that has no answer.
func (c *call) delegate(ctx context.Context, command string) error {
	if !c.conf.delegated() {
		return nil
	}
	_, err := c.execute(ctx, command)
	return err
}

// delegateAdd asks the program for addresses. If it fails it is told that they
// are not wanted, as the specification demands.
func (c *call) delegateAdd(ctx context.Context) (*current.Result, error) {
	out, err := c.execute(ctx, "ADD")
	if err == nil {
		var r *current.Result
		if r, err = parseResult(out, c.conf.CNIVersion); err == nil {
			return r, nil
		}
		err = fail(codeDecode, "the answer of ipam program %s: %v", c.conf.ipam.program, err)
	}
	return nil, errors.Join(err, c.delegate(context.WithoutCancel(ctx), "DEL"))
}

// parseResult reads a result; one that does not say so is in the version of the
// configuration.
func parseResult(b []byte, asked string) (*current.Result, error) {
	var v struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	r, err := create.Create(cmp.Or(v.CNIVersion, asked), b)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(r)
}

// execute runs the program with the environment and the configuration that the
// plugin was given. The library's own way would link an HTTP client (for
// traces), 2 MB and some of the start.
func (c *call) execute(ctx context.Context, command string) ([]byte, error) {
	path, err := c.program()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+c.container, "CNI_NETNS="+c.netns,
		"CNI_IFNAME="+c.ifname, "CNI_ARGS="+c.args, "CNI_PATH="+c.path)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(c.stdin), c.stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	var said types.Error
	if json.Unmarshal(out, &said) == nil && said.Msg != "" {
		return nil, &Error{Code: said.Code, Msg: oneLine("ipam program " + c.conf.ipam.program + ": " + said.Msg), Details: said.Details}
	}
	return nil, fail(codeInternal, "ipam program %s: %v: %s", c.conf.ipam.program, err, short(oneLine(string(out))))
}

// program finds the program in CNI_PATH.
func (c *call) program() (string, error) {
	for _, dir := range filepath.SplitList(c.path) {
		path := filepath.Join(dir, c.conf.ipam.program)
		if i, err := os.Stat(path); dir != "" && err == nil && i.Mode().IsRegular() && i.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fail(codeConfig, "ipam.type %s: there is no such program in CNI_PATH (%s)", short(c.conf.ipam.program), short(c.path))
}

// takeAnswer puts what a program gave into the configuration: fixed addresses,
// and the subnets of a network that is not there yet.
func (c *config) takeAnswer(r *current.Result) error {
	c.ips = nil
	if len(r.IPs) == 0 {
		return fail(codeConfig, "ipam program %s gave no address", c.ipam.program)
	}
	for _, ip := range r.IPs {
		a, err := prefixOf(ip.Address)
		if err != nil {
			return fail(codeConfig, "ipam program %s: %v", c.ipam.program, err)
		}
		sub := berth.Subnet{Prefix: a.Masked()}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			sub.Gateway = gw.Unmap()
		}
		c.ips = append(c.ips, a.Addr())
		c.spec.Subnets = append(c.spec.Subnets, sub)
	}
	for _, route := range r.Routes {
		if err := checkRoute(route); err != nil {
			return err
		}
	}
	c.ipam.dns = r.DNS
	return nil
}

func prefixOf(n net.IPNet) (netip.Prefix, error) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, fmt.Errorf("%s is no address", n.String())
	}
	if a = a.Unmap(); a.Is4() && bits == 128 {
		ones -= 96
	}
	return netip.PrefixFrom(a, ones), nil
}
