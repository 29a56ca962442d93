// A worker in Go. It makes the calls that tests/it/clients.rs expects of every client, with messages from reflection.
// It needs no generated code, and builds with Debian's packages of grpc-go.
//
// grpc-go tcp ADDRESS | unix PATH | tls ADDRESS FOLDER
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

const api = "tls.sessiond.v1."

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// dynamic is the codec of messages without generated code. The codec of Debian's grpc-go is for the older protobuf.
type dynamic struct{}

func (dynamic) Name() string                          { return "proto" }
func (dynamic) Marshal(v interface{}) ([]byte, error) { return proto.Marshal(v.(proto.Message)) }
func (dynamic) Unmarshal(data []byte, v interface{}) error {
	return proto.Unmarshal(data, v.(proto.Message))
}

func dial(kind, where string, more []string) *grpc.ClientConn {
	option := grpc.WithInsecure()
	switch kind {
	case "unix":
		where = "unix:" + where
	case "tls":
		pair, err := tls.LoadX509KeyPair(more[0]+"/web.crt", more[0]+"/web.key")
		must(err)
		ca, err := os.ReadFile(more[0] + "/ca.pem")
		must(err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		config := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
		option = grpc.WithTransportCredentials(credentials.NewTLS(config))
	}
	channel, err := grpc.Dial(where, option)
	must(err)
	return channel
}

// The services that reflection lists, and the files of the contract.
func reflected(ctx context.Context, channel *grpc.ClientConn) ([]string, *protoregistry.Files) {
	stream, err := reflection.NewServerReflectionClient(channel).ServerReflectionInfo(ctx)
	must(err)
	ask := func(request *reflection.ServerReflectionRequest) *reflection.ServerReflectionResponse {
		must(stream.Send(request))
		answer, err := stream.Recv()
		must(err)
		return answer
	}
	listed := ask(&reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_ListServices{ListServices: "*"},
	})
	var services []string
	for _, service := range listed.GetListServicesResponse().Service {
		services = append(services, service.Name)
	}
	sort.Strings(services)

	var set descriptorpb.FileDescriptorSet
	seen := map[string]bool{}
	var fetch func(name string)
	fetch = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		answer := ask(&reflection.ServerReflectionRequest{
			MessageRequest: &reflection.ServerReflectionRequest_FileByFilename{FileByFilename: name},
		})
		for _, bytes := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
			file := &descriptorpb.FileDescriptorProto{}
			must(proto.Unmarshal(bytes, file))
			seen[file.GetName()] = true
			for _, needed := range file.Dependency {
				fetch(needed)
			}
			set.File = append(set.File, file)
		}
	}
	fetch("tls/sessiond/v1/connection_service.proto")
	fetch("tls/sessiond/v1/context_service.proto")
	files, err := protodesc.NewFiles(&set)
	must(err)
	return services, files
}

func main() {
	channel := dial(os.Args[1], os.Args[2], os.Args[3:])
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	services, files := reflected(ctx, channel)
	fmt.Print("services")
	for _, service := range services {
		fmt.Print(" ", service)
	}
	fmt.Println()

	message := func(name string) *dynamicpb.Message {
		found, err := files.FindDescriptorByName(protoreflect.FullName(api + name))
		must(err)
		return dynamicpb.NewMessage(found.(protoreflect.MessageDescriptor))
	}
	field := func(of protoreflect.Message, name string) protoreflect.FieldDescriptor {
		return of.Descriptor().Fields().ByName(protoreflect.Name(name))
	}
	call := func(service, method string, request *dynamicpb.Message) (*dynamicpb.Message, error) {
		answer := message(method + "Response")
		err := channel.Invoke(ctx, "/"+api+service+"/"+method, request, answer, grpc.ForceCodec(dynamic{}))
		return answer, err
	}

	listed, err := call("ContextService", "ListContexts", message("ListContextsRequest"))
	must(err)
	fmt.Print("contexts")
	contexts := listed.Get(field(listed, "contexts")).List()
	for at := 0; at < contexts.Len(); at++ {
		one := contexts.Get(at).Message()
		fmt.Print(" ", one.Get(field(one, "name")))
	}
	fmt.Println()

	wanted := message("NewRequest")
	wanted.Set(field(wanted, "role"), protoreflect.ValueOfEnum(
		field(wanted, "role").Enum().Values().ByName("ROLE_CLIENT").Number()))
	wanted.Set(field(wanted, "server_name"), protoreflect.ValueOfString("localhost"))
	made, err := call("ConnectionService", "New", wanted)
	must(err)
	connection := made.Get(field(made, "connection")).Message()
	id := connection.Get(field(connection, "id"))
	free := message("FreeRequest")
	free.Set(field(free, "connection_id"), id)
	_, err = call("ConnectionService", "Free", free)
	must(err)
	fmt.Println("freed", len(id.String()))

	drive := &grpc.StreamDesc{StreamName: "Drive", ServerStreams: true, ClientStreams: true}
	stream, err := channel.NewStream(ctx, drive, "/"+api+"ConnectionService/Drive", grpc.ForceCodec(dynamic{}))
	must(err)
	event := message("DriveRequest")
	event.Set(field(event, "new"), protoreflect.ValueOfMessage(wanted))
	must(stream.SendMsg(event))
	must(stream.CloseSend())
	fmt.Print("drive")
	var first byte
	for {
		answer := message("DriveResponse")
		if err := stream.RecvMsg(answer); err == io.EOF {
			break
		} else {
			must(err)
		}
		kind := answer.WhichOneof(answer.Descriptor().Oneofs().ByName("event"))
		fmt.Print(" ", kind.Name())
		if kind.Name() == "ciphertext" {
			first = answer.Get(kind).Bytes()[0]
		}
	}
	fmt.Println("", first)

	_, err = call("ConnectionService", "Free", free)
	refused := status.Convert(err)
	for _, detail := range refused.Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is {
			fmt.Println("error", refused.Code(), info.Reason, info.Domain)
		}
	}
}
