package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth/internal/hostlocal"
)

var hostLocalKeys = map[string]map[string]key{
	"ipam": {
		"type": {verdict: same}, "subnet": {verdict: same}, "rangeStart": {verdict: same}, "rangeEnd": {verdict: same},
		"gateway": {verdict: same}, "ranges": {verdict: same, why: "any number of sets: one address of each"}, "routes": {verdict: same},
		"resolvConf": {verdict: same}, "dataDir": {verdict: same, why: "the same files: either program goes on with the other's"},
	},
	"runtimeConfig": {"ipRanges": {verdict: same, why: "before those of `ipam`"}, "ips": {verdict: same}},
	"args":          {"cni": {verdict: same, why: "`ips`"}},
}

func hostLocalAdd(args *skel.CmdArgs) error {
	c, err := hostlocal.Load(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	r, err := hostlocal.Add(c, args.ContainerID, args.IfName)
	if err != nil {
		return err
	}
	return printResult(r, c.CNIVersion)
}

func hostLocalDel(args *skel.CmdArgs) error {
	c, err := hostlocal.Load(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	return hostlocal.Del(c, args.ContainerID, args.IfName)
}

func hostLocalCheck(args *skel.CmdArgs) error {
	c, err := hostlocal.Load(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	return hostlocal.Check(c, args.ContainerID, args.IfName)
}

func hostLocalGC(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return err
	}
	c, err := hostlocal.Load(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	return hostlocal.GC(c, conf.ValidAttachments)
}

func hostLocalStatus(args *skel.CmdArgs) error {
	c, err := hostlocal.Load(args.StdinData, args.Args)
	if err == nil {
		err = hostlocal.Status(c)
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// An addresser is who gives the addresses of a call: host-local, which is in
// this program, or another that is executed.
type addresser struct {
	args    *skel.CmdArgs
	program string
	call    *call
}

func newAddresser(args *skel.CmdArgs, conf *types.NetConf) addresser {
	c := &call{
		container: args.ContainerID, netns: args.Netns, ifname: args.IfName, args: args.Args, path: args.Path,
		stdin: args.StdinData, stderr: os.Stderr,
	}
	c.conf.CNIVersion, c.conf.ipam.program = conf.CNIVersion, conf.IPAM.Type
	return addresser{args, conf.IPAM.Type, c}
}

// none reports whether nobody gives addresses.
func (a addresser) none() bool { return a.program == "" }

func (a addresser) add(ctx context.Context) (*current.Result, error) {
	var r *current.Result
	if a.call.conf.delegated() {
		var err error
		if r, err = a.call.delegateAdd(ctx); err != nil {
			return nil, err
		}
	} else {
		c, err := hostlocal.Load(a.args.StdinData, a.args.Args)
		if err != nil {
			return nil, err
		}
		if r, err = hostlocal.Add(c, a.args.ContainerID, a.args.IfName); err != nil {
			return nil, err
		}
	}
	if len(r.IPs) == 0 {
		return nil, errors.Join(errors.New("IPAM plugin returned missing IP config"), a.do(ctx, "DEL"))
	}
	return r, nil
}

// do has a command done that has no answer.
func (a addresser) do(ctx context.Context, command string) error {
	if a.none() {
		return nil
	}
	if a.call.conf.delegated() {
		return a.call.delegate(ctx, command)
	}
	return map[string]func(*skel.CmdArgs) error{
		"DEL": hostLocalDel, "CHECK": hostLocalCheck, "GC": hostLocalGC, "STATUS": hostLocalStatus,
	}[command](a.args)
}

// ipamStatus is STATUS of a plugin that could always connect, if there are
// addresses.
func ipamStatus(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("failed to load netconf: %w", err)
	}
	return newAddresser(args, &conf).do(context.Background(), "STATUS")
}
